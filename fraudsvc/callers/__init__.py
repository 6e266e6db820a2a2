"""Who may call: certificates, tokens, roles and rates of the gRPC port."""
