"""What the benchmarks `swap` and `batch` compare, and what they have it do."""
