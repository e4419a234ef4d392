"""The promises, as pure functions of a recorded history."""
