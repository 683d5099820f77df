//! What guest and host say to each other. Bytes in, values out: no sockets, files or clocks.
