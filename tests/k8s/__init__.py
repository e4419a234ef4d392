"""The manifests of `k8s/` on a real Kubernetes API server."""
