"""Write the values that the pipeline filled in back into the shop's own columns."""
