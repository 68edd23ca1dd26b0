"""The edge: HTTP and the control channel's upgrade, one file a resource."""
