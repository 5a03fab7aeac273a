//! Messages to an agent and back, each with a time limit.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, send};

use crate::agent::{MESSAGE, Op};
use crate::{Error, Going};

/// Size of a message.
pub(crate) const BYTES: usize = 512;

/// Where its payload begins.
pub(crate) const PAYLOAD: usize = 128;

/// Where an agent counts the SIGTRAPs that its events asked for.
pub(crate) const SIGNALS: usize = 120;

/// The address of a byte of the payload, for the agent.
pub(crate) const fn payload(offset: u64) -> u64 {
    MESSAGE + PAYLOAD as u64 + offset
}

/// How long an agent may take for anything. Under emulation, on a busy host, much takes long.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A message: the result, the operation, seven words of argument, a number, and bytes.
#[derive(Clone, Debug)]
pub(crate) struct Message([u8; BYTES]);

impl Message {
    /// `words` are number and arguments of a system call, or flags and arguments of what else.
    pub(crate) fn new(op: Op, words: &[u64]) -> Message {
        let mut message = Message([0; BYTES]);
        message.set(8, op as u64);
        for (at, &word) in words.iter().enumerate() {
            message.set(16 + 8 * at, word);
        }
        message
    }

    /// A system call.
    pub(crate) fn call(number: libc::c_long, arguments: &[u64]) -> Message {
        let mut message = Message::new(Op::Call, &[number as u64]);
        for (at, &argument) in arguments.iter().enumerate() {
            message.set(24 + 8 * at, argument);
        }
        message
    }

    /// With bytes at an offset of the payload.
    #[must_use]
    pub(crate) fn with(mut self, offset: usize, bytes: &[u8]) -> Message {
        self.0[PAYLOAD + offset..][..bytes.len()].copy_from_slice(bytes);
        self
    }

    fn set(&mut self, at: usize, word: u64) {
        self.0[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }

    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }

    /// What the system call returned: a value, or an errno.
    pub(crate) fn result(&self) -> Result<u64, i32> {
        match self.word(0) as i64 {
            errno @ -4095..=-1 => Err(-errno as i32),
            value => Ok(value as u64),
        }
    }

    /// How many SIGTRAPs there were.
    pub(crate) fn signals(&self) -> u64 {
        self.word(SIGNALS)
    }

    /// A word of the payload.
    pub(crate) fn payload_word(&self, offset: usize) -> u64 {
        self.word(PAYLOAD + offset)
    }

    /// Half a word of the payload.
    pub(crate) fn payload_half(&self, offset: usize) -> u32 {
        let at = PAYLOAD + offset;
        u32::from_le_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }
}

/// The driver's end of an agent's socket.
#[derive(Debug)]
pub(crate) struct Channel(pub(crate) OwnedFd);

impl Channel {
    pub(crate) fn send(&self, message: &Message) -> Result<(), Error> {
        match send(self.0.as_raw_fd(), &message.0, MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => Ok(()),
            Err(errno) => Err(Error::Lost(format!("an agent does not listen any more: {errno}"))),
        }
    }

    /// The answer.
    pub(crate) fn receive(&self, going: &mut Going<'_>) -> Result<Message, Error> {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(message) = self.try_receive(Duration::from_millis(50))? {
                return Ok(message);
            }
            if !going() {
                return Err(Error::Interrupted);
            }
            if Instant::now() > end {
                return Err(Error::Lost("an agent does not answer".to_owned()));
            }
        }
    }

    /// The answer, if it comes in time.
    pub(crate) fn try_receive(&self, wait: Duration) -> Result<Option<Message>, Error> {
        if !self.readable(wait)? {
            return Ok(None);
        }
        let mut message = Message([0; BYTES]);
        let got = nix::sys::socket::recv(self.0.as_raw_fd(), &mut message.0, MsgFlags::MSG_DONTWAIT);
        match got {
            Ok(BYTES) => Ok(Some(message)),
            Ok(_) => Err(Error::Lost("an agent is gone".to_owned())),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(errno) => Err(Error::Lost(format!("recv: {errno}"))),
        }
    }

    fn readable(&self, wait: Duration) -> Result<bool, Error> {
        let timeout = PollTimeout::try_from(wait).expect("waits are short");
        match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(Errno::EINTR) => Ok(false),
            Ok(_) => Ok(true),
            Err(errno) => Err(Error::Lost(format!("poll: {errno}"))),
        }
    }

    /// A descriptor that an agent sends instead of an answer.
    #[allow(unsafe_code)]
    pub(crate) fn receive_descriptor(&self, going: &mut Going<'_>) -> Result<OwnedFd, Error> {
        let end = Instant::now() + LIMIT;
        while !self.readable(Duration::from_millis(50))? {
            if !going() {
                return Err(Error::Interrupted);
            }
            if Instant::now() > end {
                return Err(Error::Lost("an agent does not answer".to_owned()));
            }
        }
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let mut byte = [0; 8];
        let mut parts = [std::io::IoSliceMut::new(&mut byte)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let lost = |errno: Errno| Error::Lost(format!("no descriptor came: {errno}"));
        let message = recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), flags).map_err(lost)?;
        for control in message.cmsgs().map_err(lost)? {
            if let ControlMessageOwned::ScmRights(descriptors) = control
                && let [descriptor] = descriptors[..]
            {
                // SAFETY: the kernel has just made it for us, and nobody else knows its number.
                return Ok(unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
        }
        Err(Error::Lost("a message without a descriptor".to_owned()))
    }
}

/// The system call by which an agent sends one of its descriptors: to be received before the answer.
pub(crate) fn send_descriptor(descriptor: u64) -> Message {
    let control = [20u64.to_le_bytes(), [1, 0, 0, 0, 1, 0, 0, 0], descriptor.to_le_bytes()].concat(); // SOL_SOCKET, SCM_RIGHTS
    let vector = [payload(0), 8].map(u64::to_le_bytes).concat();
    let header = [0, 0, payload(16), 1, payload(32), 24, 0].map(u64::to_le_bytes).concat();
    Message::call(libc::SYS_sendmsg, &[0, payload(64), 0]).with(16, &vector).with(32, &control).with(64, &header)
}
