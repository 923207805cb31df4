"""The unified contrastive embedding of map images, logs and ids."""
