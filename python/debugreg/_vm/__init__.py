"""The world `vm`: a stock Debian kernel with kvm-amd under QEMU's emulation, and the driver inside it."""
