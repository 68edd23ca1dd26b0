"""Every transaction of the storage contract, written once for both databases."""
