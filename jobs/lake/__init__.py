"""The lake, on a disk or on S3: paths, atomic writes, locks, verification and listings of its files."""
