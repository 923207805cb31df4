"""The report page and the model card: what the other stages wrote, for people."""
