"""What everything stands on: it imports torch alone, and everything may import it."""
