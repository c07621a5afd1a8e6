"""Whole models of other libraries, in place of a network of parts."""
