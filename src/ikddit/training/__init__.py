"""The objective of Eq. 8, the loop, EMA and resumable checkpoints."""
