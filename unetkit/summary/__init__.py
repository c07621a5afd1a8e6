"""Descriptions of a built network: its trace and table, its drawing, its receptive field, and checks of its passes.

`trace` follows a pass and `report` holds and prints its steps, `svg` draws them, `picture` writes the
drawing to a file, `input_sizes` verifies a network and
finds the sizes that it takes, and `sanity_check` runs a pass with real weights.
"""
