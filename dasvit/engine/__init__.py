"""What runs and keeps any training, and knows nothing of vision transformers."""
