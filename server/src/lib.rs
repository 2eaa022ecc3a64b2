//! The reference storage server: one store, many wires.
