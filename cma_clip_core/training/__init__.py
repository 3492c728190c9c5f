"""Training: the loop, its objectives, its optimizer."""
