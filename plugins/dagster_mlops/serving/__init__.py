"""Rollouts of packaged models behind Envoy: state, processes, traffic and golden sets, whatever tool packages them."""
