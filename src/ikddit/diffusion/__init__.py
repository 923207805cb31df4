"""EDM preconditioning, noise law and samplers."""
