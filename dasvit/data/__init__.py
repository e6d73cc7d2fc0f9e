"""Images: where they come from, and how they are held and distorted."""
