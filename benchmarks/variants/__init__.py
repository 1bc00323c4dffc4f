"""Clean pairs said in another way, which must stay the same; and faulty ones, whose place must follow.

`python -m benchmarks.variants --help`. README.md says what is measured; `catalogue` lists the transformations.
"""
