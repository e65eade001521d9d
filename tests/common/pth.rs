//! Files of `torch.save`, written byte by byte, so that a test can spoil any of them.

/// A member of a zip file.
#[derive(Clone)]
pub struct Member {
    pub name: String,
    pub bytes: Vec<u8>,
    pub method: u16,
    pub flags: u16,
    /// What the list of members says instead of the truth.
    pub size: Option<u64>,
    pub header: Option<u64>,
}

impl Member {
    pub fn new(name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        let (name, bytes) = (name.to_owned(), bytes.into());
        Self { name, bytes, method: 0, flags: 0, size: None, header: None }
    }
}

/// The members with their list, whose numbers are all of 64 bits if `wide`.
pub fn zip(members: &[Member], wide: bool) -> Vec<u8> {
    let (mut file, mut list) = (Vec::new(), Vec::new());
    for member in members {
        let Member { name, bytes, method, flags, .. } = member;
        let header = member.header.unwrap_or(file.len() as u64);
        let size = member.size.unwrap_or(bytes.len() as u64);
        let padding = (64 - (file.len() + 30 + name.len() + 4) % 64) % 64;
        put(
            &mut file,
            &[(4, 0x0403_4b50), (2, 0), (2, u64::from(*flags)), (2, u64::from(*method))],
        );
        put(&mut file, &[(4, 0), (4, 0), (4, 0), (4, 0), (2, name.len() as u64)]);
        put(&mut file, &[(2, 4 + padding as u64)]);
        file.extend(name.bytes());
        put(&mut file, &[(2, 0x4246), (2, padding as u64)]);
        file.extend(vec![b'Z'; padding]);
        file.extend(bytes);

        let all = u64::from(u32::MAX);
        let small = |number| if wide { all } else { number };
        put(&mut list, &[(4, 0x0201_4b50), (2, 0), (2, 0), (2, u64::from(*flags))]);
        put(
            &mut list,
            &[(2, u64::from(*method)), (4, 0), (4, 0), (4, small(size)), (4, small(size))],
        );
        put(&mut list, &[(2, name.len() as u64), (2, if wide { 28 } else { 0 }), (2, 0), (2, 0)]);
        put(&mut list, &[(2, 0), (4, 0), (4, small(header))]);
        list.extend(name.bytes());
        if wide {
            put(&mut list, &[(2, 1), (2, 24), (8, size), (8, size), (8, header)]);
        }
    }
    let (start, bytes, count) = (file.len() as u64, list.len() as u64, members.len() as u64);
    file.extend(list);
    if wide {
        let at = file.len() as u64;
        put(&mut file, &[(4, 0x0606_4b50), (8, 44), (2, 0), (2, 0), (4, 0), (4, 0), (8, count)]);
        put(&mut file, &[(8, count), (8, bytes), (8, start)]);
        put(&mut file, &[(4, 0x0706_4b50), (4, 0), (8, at), (4, 1)]);
    }
    put(&mut file, &[(4, 0x0605_4b50), (2, 0), (2, 0), (2, count), (2, count)]);
    put(&mut file, &[(4, bytes), (4, start), (2, 0)]);
    file
}

/// Numbers of so many bytes.
pub fn put(file: &mut Vec<u8>, numbers: &[(usize, u64)]) {
    for (bytes, number) in numbers {
        file.extend(&number.to_le_bytes()[..*bytes]);
    }
}

/// What a pickle says of a tensor.
#[derive(Clone)]
pub struct Said {
    pub name: &'static str,
    pub class: &'static str,
    pub member: &'static str,
    pub len: i64,
    pub first: i64,
    pub shape: Vec<i64>,
    pub stride: Vec<i64>,
}

impl Said {
    /// A matrix of f32, whose numbers are a member of their own.
    pub fn matrix(name: &'static str, member: &'static str, [rows, columns]: [i64; 2]) -> Self {
        Self {
            name,
            class: "torch\nFloatStorage",
            member,
            len: rows * columns,
            first: 0,
            shape: vec![rows, columns],
            stride: vec![columns, 1],
        }
    }

    /// Its name and what makes it.
    fn pickled(&self) -> Vec<u8> {
        let rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec();
        let class = format!("c{}\n", self.class).into_bytes();
        let numbers = |numbers: &[i64]| {
            let numbers = numbers.iter().map(|number| long(*number)).collect::<Vec<_>>().concat();
            [&b"("[..], &numbers, b"t"].concat()
        };
        [
            text(self.name),
            rebuild,
            b"((".to_vec(),
            text("storage"),
            class,
            text(self.member),
            text("cpu"),
            long(self.len),
            b"tQ".to_vec(),
            long(self.first),
            numbers(&self.shape),
            numbers(&self.stride),
            b"\x89ccollections\nOrderedDict\n)RtR".to_vec(),
        ]
        .concat()
    }
}

/// BINUNICODE
pub fn text(text: &str) -> Vec<u8> {
    [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// LONG1 of eight bytes.
fn long(number: i64) -> Vec<u8> {
    [&b"\x8a\x08"[..], &number.to_le_bytes()].concat()
}

/// A dictionary of tensors.
pub fn pickle(tensors: &[Said]) -> Vec<u8> {
    let items: Vec<u8> = tensors.iter().flat_map(Said::pickled).collect();
    [&b"\x80\x02}("[..], &items, b"u."].concat()
}
