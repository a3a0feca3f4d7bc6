//! hard_example_miner
