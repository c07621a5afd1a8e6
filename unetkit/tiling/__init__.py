"""What becomes of a built network: files, exports, predictions."""
