//! In which order tasks are done: one of each container in turn, so that no container has all the deletes at once.

use std::collections::{BTreeMap, VecDeque};

use super::DeleteTask;

/// Tasks that wait for others to come between them.
#[derive(Debug)]
pub(super) struct RoundRobin {
    /// By `account/container` of the objects.
    waiting: BTreeMap<String, VecDeque<DeleteTask>>,
    count: usize,
    /// So many wait at most.
    size: usize,
}

impl RoundRobin {
    pub fn new(size: usize) -> Self {
        RoundRobin { waiting: BTreeMap::new(), count: 0, size }
    }

    /// Adds a task; all that have waited, in turns, if there are too many now.
    pub fn push(&mut self, task: DeleteTask) -> Vec<DeleteTask> {
        let key = format!("{}/{}", task.target.account, task.target.container);
        self.waiting.entry(key).or_default().push_back(task);
        self.count += 1;
        if self.count > self.size { self.drain() } else { Vec::new() }
    }

    pub fn drain(&mut self) -> Vec<DeleteTask> {
        let mut all = Vec::with_capacity(self.count);
        while !self.waiting.is_empty() {
            self.waiting.retain(|_, tasks| {
                all.extend(tasks.pop_front());
                !tasks.is_empty()
            });
        }
        self.count = 0;
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::expirer::Task;

    fn task(name: &str) -> DeleteTask {
        let target = Task::parse(&format!("5-{name}")).unwrap();
        DeleteTask { container: "0000000005".into(), name: name.to_owned(), target, is_async: false }
    }

    fn names(tasks: Vec<DeleteTask>) -> Vec<String> {
        tasks.into_iter().map(|task| task.name).collect()
    }

    #[test]
    fn containers_take_turns() {
        let mut order = RoundRobin::new(5);
        for name in ["b/c/1", "b/c/2", "b/c/3", "a/c/1", "a/d/1"] {
            assert!(order.push(task(name)).is_empty());
        }
        assert_eq!(names(order.push(task("a/d/2"))), ["a/c/1", "a/d/1", "b/c/1", "a/d/2", "b/c/2", "b/c/3"]);
        assert!(order.push(task("a/c/9")).is_empty());
        assert_eq!(names(order.drain()), ["a/c/9"]);
        assert_eq!(names(RoundRobin::new(0).push(task("a/c/1"))), ["a/c/1"]);
    }
}
