"""What a change of policy or bundle would have decided."""
