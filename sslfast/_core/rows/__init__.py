"""What contracts and backends share of the primitives over rows."""
