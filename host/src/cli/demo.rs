use super::{Failure, output::Output};
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[arg(long)]
    once: bool,
}
pub async fn run(_a: Arguments, _o: Output) -> Result<(), Failure> {
    Ok(())
}
