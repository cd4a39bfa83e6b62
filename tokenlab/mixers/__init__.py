"""What can stand where attention stands: mixers, the blocks they plug into, and how they compare."""
