"""The papers' printed tables beside what the real modules cost."""
