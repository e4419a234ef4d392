"""The promises of the product, as pure functions that check a recorded history."""
