//! Sockets and words passed between processes: from a supervisor to its worker, and to itself across an exec.
//!
//! The channel is a pair of local SEQPACKET sockets, one end of which the new program finds as its stdin. A message is
//! a JSON text with up to [`MAX_FDS`] open files. A message that was sent stays in the channel when the sender is
//! gone, so that a process can write its own inheritance, exec, and read it.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde_json::Value;
use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// Files in one message: a socket for each of a node's devices, and a channel for each worker. The kernel allows 253.
pub const MAX_FDS: usize = 250;
const MAX_TEXT: usize = 64 * 1024;

/// One end.
pub struct Channel(OwnedFd);

pub struct Message {
    pub text: Value,
    pub fds: Vec<OwnedFd>,
}

impl Channel {
    pub fn pair() -> io::Result<(Channel, Channel)> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Channel(ours), Channel(theirs)))
    }

    /// The end which the process that started us left as our stdin.
    pub fn from_stdin() -> io::Result<Channel> {
        Ok(Channel(io::stdin().as_fd().try_clone_to_owned()?))
    }

    pub fn from_fd(fd: OwnedFd) -> Channel {
        Channel(fd)
    }

    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub fn send(&self, text: &Value, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = text.to_string();
        if text.len() > MAX_TEXT || fds.len() > MAX_FDS {
            return Err(io::Error::new(ErrorKind::InvalidInput, "too much for one message"));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        rustix::net::sendmsg(&self.0, &[IoSlice::new(text.as_bytes())], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Waits for a message; None when the other end is closed.
    pub fn receive(&self) -> io::Result<Option<Message>> {
        receive(self.0.as_fd())
    }

    /// The same end for use in a runtime.
    pub fn into_async(self) -> io::Result<AsyncChannel> {
        // The runtime only polls it, to which the kind of socket does not matter.
        let socket = std::os::unix::net::UnixDatagram::from(self.0);
        socket.set_nonblocking(true)?;
        Ok(AsyncChannel(UnixDatagram::from_std(socket)?))
    }
}

/// An end that is awaited.
pub struct AsyncChannel(UnixDatagram);

impl AsyncChannel {
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The next message; None when the other end is closed.
    pub async fn receive(&self) -> io::Result<Option<Message>> {
        loop {
            self.0.readable().await?;
            match self.0.try_io(Interest::READABLE, || receive(self.0.as_fd())) {
                Err(err) if err.kind() == ErrorKind::WouldBlock => {}
                received => return received,
            }
        }
    }
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Message>> {
    let mut text = vec![0; MAX_TEXT];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut text)];
    let bytes = match rustix::net::recvmsg(socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
        Ok(message) => message.bytes,
        Err(rustix::io::Errno::CONNRESET) => 0,
        Err(err) => return Err(err.into()),
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if bytes == 0 {
        return Ok(None);
    }
    let text = serde_json::from_slice(&text[..bytes])?;
    Ok(Some(Message { text, fds }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_socket_outlives_its_sender_in_the_channel() {
        let (ours, theirs) = Channel::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        ours.send(&json!({"listeners": 1}), &[listener.as_fd()]).unwrap();
        drop((ours, listener));
        let mut client = TcpStream::connect(address).unwrap();
        let message = theirs.receive().unwrap().unwrap();
        assert_eq!(message.text, json!({"listeners": 1}));
        let listener = TcpListener::from(message.fds.into_iter().next().unwrap());
        drop(listener.accept().unwrap());
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        assert!(theirs.receive().unwrap().is_none());
    }

    #[tokio::test]
    async fn an_end_can_be_awaited() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = theirs.into_async().unwrap();
        let sender = tokio::task::spawn_blocking(move || ours.send(&json!("ready"), &[]));
        assert_eq!(theirs.receive().await.unwrap().unwrap().text, json!("ready"));
        sender.await.unwrap().unwrap();
        assert!(theirs.receive().await.unwrap().is_none());
    }
}
