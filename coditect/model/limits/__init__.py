"""What a capability declares to protect a dependency or a key: breaker, rate, concurrency."""
