"""An operator's use cases for handoffs, discussions and services that heal, beyond what the client does."""
