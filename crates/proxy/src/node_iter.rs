//! The nodes of a partition in the order in which a request tries them: primaries as sorted, then handoffs,
//! without those which are error limited, and no more than `request_node_count` that worked.
//!
//! A node that becomes error limited after it was given out does not count, so another takes its place.

use std::sync::Arc;

use ring::{MoreNodes, Node, Ring};

use crate::app::Application;
use crate::options::{PolicyOptions, SortingMethod};

pub struct NodeIter {
    server_type: &'static str,
    /// Yet to come, the next one last.
    primaries: Vec<Node>,
    handoffs: Handoffs,
    pub num_primary_nodes: usize,
    nodes_left: isize,
    expected_handoffs: isize,
    handoffs_given: isize,
    /// Given out last; whether it counts is seen when the next is asked for.
    last: Option<Node>,
    done: bool,
}

enum Handoffs {
    /// Not asked for yet, as in most requests: finding them is work.
    Of(Arc<Ring>, u32),
    Ring(MoreNodes),
    List(std::vec::IntoIter<Node>),
}

impl Handoffs {
    fn next(&mut self) -> Option<Node> {
        if let Handoffs::Of(ring, part) = self {
            *self = Handoffs::Ring(ring.get_more_nodes(*part));
        }
        match self {
            Handoffs::Of(..) => None,
            Handoffs::Ring(nodes) => nodes.next(),
            Handoffs::List(nodes) => nodes.next(),
        }
    }
}

impl NodeIter {
    pub fn new(
        app: &Application,
        server_type: &'static str,
        ring: &Arc<Ring>,
        part: u32,
        options: &PolicyOptions,
    ) -> Self {
        let primaries = ring.get_part_nodes(part);
        let count = primaries.len();
        Self::build(app, server_type, count, primaries, Handoffs::Of(ring.clone(), part), options)
    }

    /// Over these nodes instead of the partition's own; the first `num_primary_nodes` of them are sorted.
    pub fn with_nodes(
        app: &Application,
        server_type: &'static str,
        num_primary_nodes: usize,
        mut nodes: Vec<Node>,
        options: &PolicyOptions,
    ) -> Self {
        let rest = nodes.split_off(num_primary_nodes.min(nodes.len()));
        Self::build(app, server_type, num_primary_nodes, nodes, Handoffs::List(rest.into_iter()), options)
    }

    /// Local nodes first, as `write_affinity` wants it; all others follow. With `local_handoffs_first` the
    /// primaries come before the local handoffs (a DELETE must reach both).
    pub fn local_first(
        app: &Application,
        ring: &Arc<Ring>,
        part: u32,
        options: &PolicyOptions,
        local_handoffs_first: bool,
    ) -> Self {
        if options.write_affinity.is_empty() {
            return Self::new(app, "object", ring, part, options);
        }
        let primaries = ring.get_part_nodes(part);
        let handoffs = ring.get_more_nodes(part);
        let is_local = |node: &Node| options.write_affinity.is_local(node);
        let mut nodes: Vec<Node>;
        let all: Vec<Node> = primaries.iter().cloned().chain(handoffs).collect();
        if local_handoffs_first {
            let count = options.local_handoff_count(&primaries);
            nodes = primaries.clone();
            nodes.extend(all[primaries.len()..].iter().filter(|node| is_local(node)).take(count).cloned());
        } else {
            let count = options.write_affinity_node_count.of(primaries.len());
            nodes = all.iter().filter(|node| is_local(node)).take(count).cloned().collect();
        }
        let preferred: Vec<u32> = nodes.iter().map(|node| node.id).collect();
        nodes.extend(all.into_iter().filter(|node| !preferred.contains(&node.id)));
        Self::with_nodes(app, "object", primaries.len(), nodes, options)
    }

    fn build(
        app: &Application,
        server_type: &'static str,
        num_primary_nodes: usize,
        mut primaries: Vec<Node>,
        handoffs: Handoffs,
        options: &PolicyOptions,
    ) -> Self {
        sort_nodes(app, &mut primaries, options);
        primaries.reverse();
        let nodes_left = app.options.request_node_count.of(num_primary_nodes) as isize;
        Self {
            server_type,
            primaries,
            handoffs,
            num_primary_nodes,
            nodes_left,
            expected_handoffs: nodes_left - num_primary_nodes as isize,
            handoffs_given: 0,
            last: None,
            done: false,
        }
    }

    /// One that has no nodes.
    pub fn exhausted() -> Self {
        Self {
            server_type: "",
            primaries: Vec::new(),
            handoffs: Handoffs::List(Vec::new().into_iter()),
            num_primary_nodes: 0,
            nodes_left: 0,
            expected_handoffs: 0,
            handoffs_given: 0,
            last: None,
            done: true,
        }
    }

    pub fn next(&mut self, app: &Application) -> Option<Node> {
        if let Some(last) = self.last.take()
            && !app.error_limited(&last)
        {
            self.nodes_left -= 1;
            self.done |= self.nodes_left <= 0;
        }
        if self.done {
            return None;
        }
        while let Some(node) = self.primaries.pop() {
            if !app.error_limited(&node) {
                self.last = Some(node.clone());
                return Some(node);
            }
        }
        while let Some(node) = self.handoffs.next() {
            if !app.error_limited(&node) {
                self.handoffs_given += 1;
                self.log_handoff(app);
                self.last = Some(node.clone());
                return Some(node);
            }
        }
        self.done = true;
        None
    }

    /// Whether more may be asked for.
    pub fn may_go_on(&self) -> bool {
        self.nodes_left > 0
    }

    pub fn has_primaries(&self) -> bool {
        !self.primaries.is_empty()
    }

    /// The next handoffs, whether limited or not.
    pub fn take_handoffs(&mut self, count: usize) -> Vec<Node> {
        std::iter::from_fn(|| self.handoffs.next()).take(count).collect()
    }

    /// A handoff is worth a line when primaries must have been skipped for it.
    fn log_handoff(&self, app: &Application) {
        let extra = self.handoffs_given - self.expected_handoffs;
        if !app.options.log_handoffs || extra <= 0 {
            return;
        }
        app.ctx.statsd.increment(&format!("{}.handoff_count", self.server_type));
        app.ctx.logger.warning(format_args!("Handoff requested ({})", self.handoffs_given));
        if extra == self.num_primary_nodes as isize {
            app.ctx.statsd.increment(&format!("{}.handoff_all_count", self.server_type));
        }
    }
}

fn sort_nodes(app: &Application, nodes: &mut [Node], options: &PolicyOptions) {
    app.rng.shuffle(nodes);
    match options.sorting_method {
        SortingMethod::Shuffle => {}
        SortingMethod::Timing => app.timings.sort(nodes),
        SortingMethod::Affinity => nodes.sort_by_key(|node| options.read_affinity.key(node)),
    }
}
