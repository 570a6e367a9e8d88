"""What reconstructions and latent codes cost."""
