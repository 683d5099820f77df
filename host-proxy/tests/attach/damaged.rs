//! A snapshot of which the storage lost something: no guest is shown less than the disk had.

use std::fs;

use protocol::ErrorCode;
use protocol::attach::Access;

use super::machine::Machine;

/// It was attached as a disk of as many bytes as were left.
#[test]
fn an_image_that_was_cut_short_or_is_gone_is_told_of_and_not_attached() {
    let machine = Machine::new(&["-machine", "q35", "-device", "virtio-scsi-pci"], "");
    let image = machine.image();
    let whole = fs::read(&image).unwrap();
    for (left, words) in
        [(Some(whole.len() - 512), "is damaged"), (Some(0), "is damaged"), (None, "does not have it")]
    {
        match left {
            Some(left) => fs::write(&image, &whole[..left]).unwrap(),
            None => fs::remove_file(&image).unwrap(),
        }
        for access in [Access::ReadOnly, Access::Writable] {
            let error = machine.attach(access).unwrap_err();
            assert_eq!(error.code, ErrorCode::StorageFailed, "{error}");
            assert!(error.message.as_str().contains(words), "{error}");
            // Reconcile would have something to say of a snapshot whose image is gone.
            assert_eq!((machine.attachments(), machine.devices(), machine.clones()), (vec![], vec![], 0));
        }
    }
    fs::write(&image, &whole).unwrap();
    machine.attach(Access::ReadOnly).unwrap();
    machine.detach().unwrap();
    machine.nothing_is_left("it is whole again");
}
