"""The lake: where its files are, how they are written whole, locked, verified and listed, on a disk and on S3."""
