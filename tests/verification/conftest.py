from packet_fixtures import any_signer, packet, signer, stranger, trust

__all__ = ["any_signer", "packet", "signer", "stranger", "trust"]
