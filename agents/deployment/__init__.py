"""What the deployer does its work with: a git repository, and a service with versioned releases on this machine."""
