"""The transformer: blocks, masking, student, teacher, implicit discriminator, size table."""
