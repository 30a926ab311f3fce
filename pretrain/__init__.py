"""How the tiny VAE, VLM and base generator were made: see README.md."""
