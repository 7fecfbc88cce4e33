//! Models from the hub, black box, against a stand-in on loopback: what is downloaded, kept,
//! verified, found again without a network, and quantised once.

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "hub/download.rs"]
mod download;
#[path = "hub/errors.rs"]
mod errors;
#[path = "hub/faults.rs"]
mod faults;
#[path = "hub/offline.rs"]
mod offline;
#[path = "hub/proxies.rs"]
mod proxies;
#[path = "hub/python.rs"]
mod python;
#[path = "hub/quantised.rs"]
mod quantised;
#[path = "hub/rwkv7.rs"]
mod rwkv7;
#[path = "common/skipped.rs"]
mod skipped;
#[path = "hub/stand_in.rs"]
mod stand_in;
#[path = "hub/world.rs"]
mod world;
