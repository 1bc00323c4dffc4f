"""One file a framework, on the shared base that says what the next one must bring."""
