"""What an overlay engineer computes and draws on a map."""
