# The same entries as ci/, for people who like just.

# format, lints, tests, smoke run
test:
    ci/test

# long proofs
nightly:
    ci/nightly

# the first thing to run
quick *flags:
    cargo run --release -- run quick {{flags}}

# rewrite formatting
fmt:
    cargo fmt --all

# lints as ci sees them
lint:
    cargo clippy --workspace --all-targets -- -D warnings
