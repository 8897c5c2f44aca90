"""What sandboxes are made from: manifests, snapshots, builds and where they are kept."""
