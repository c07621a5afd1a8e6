"""What a network is: shapes level by level, what it costs, and its picture."""
