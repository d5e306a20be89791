"""The reviewer's tool: what a run folder or a planted canary says about the privacy that was promised. No torch."""
