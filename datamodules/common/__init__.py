"""What the sources share: the datamodule, its loader, draws that depend on nothing but their keys, the split."""
