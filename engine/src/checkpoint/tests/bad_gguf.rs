//! GGUF files made bad on purpose.
