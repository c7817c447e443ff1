"""Verifying packets: signatures, the policy that they are held against, and the reports inside."""
